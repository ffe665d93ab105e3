"""Exit code 0 if the service in this container is ready, else 1.

http.client, not urllib: it starts faster and never asks a proxy for an address of this machine.
"""

import http.client
import os
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["ONESTEP_PORT"]), timeout=2)
try:
    connection.request("GET", "/readyz")
    ready = connection.getresponse().status == 200
except (OSError, http.client.HTTPException):
    ready = False
sys.exit(0 if ready else 1)
