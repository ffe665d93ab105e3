"""From the bytes of a request to a reply: the server, the routes, and who may do what."""
