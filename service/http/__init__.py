"""Bytes of a request to a reply: the server, the routes, who may do what."""
