"""The certificate that https shows. New connections get the new one as soon as its files are replaced."""

from __future__ import annotations

import logging
import ssl
from _ssl import _test_decode_cert  # type: ignore[attr-defined]  # typeshed lacks it
from pathlib import Path

from service import failures
from service.http.tokens import stamp_of

logger = logging.getLogger("logstep")


class Certificate:
    """Two files in PEM, and the context that they are loaded into."""

    def __init__(self, context: ssl.SSLContext, certificate: Path, key: Path) -> None:
        """`context` has them loaded."""
        self._context = context
        self._files = certificate, key
        self._seen = [stamp_of(file) for file in self._files]
        self.ends = self._end()
        """When it ends, in seconds since 1970."""

    def follow(self) -> None:
        """Load the files again if they have changed. Connections that are open keep the certificate they have.

        A pair that does not fit is not loaded: perhaps only one of the two files has been replaced so far.
        """
        seen = [stamp_of(file) for file in self._files]
        if seen == self._seen:
            return
        self._seen = seen
        try:
            # Elsewhere first: a context whose key does not fit its certificate answers nobody.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*self._files, password=_no_passphrase)
            self._context.load_cert_chain(*self._files, password=_no_passphrase)
            self.ends = self._end()
        except (OSError, ValueError) as error:
            told = failures.BadCertificate(certificate=self._files[0], key=self._files[1], reason=str(error))
            logger.warning("The old certificate stays in use. %s", told)
        else:
            logger.info("The certificate %s was replaced, and new connections get the new one.", self._files[0])

    def _end(self) -> float:
        # Private, but nothing public reads the dates of a certificate that no peer has sent.
        return float(ssl.cert_time_to_seconds(_test_decode_cert(self._files[0])["notAfter"]))


def _no_passphrase() -> str:
    raise ValueError("the key has a passphrase")  # else OpenSSL would ask for it on the terminal, and wait
