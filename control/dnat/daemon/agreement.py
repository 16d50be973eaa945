"""X25519 key agreement (RFC 7748) with HKDF-SHA-256 (RFC 5869), as docs/pap.md, 9.3 has it.

The library is imported where it is used: it takes 7 MB, and most daemons agree on no key.
"""

from __future__ import annotations

from dnat.pap.auth import SECRET_LENGTH


class X25519Agreement:
    """A `dnat.pap.auth.Agreement`: a key pair that is used once."""

    def __init__(self) -> None:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self._private = X25519PrivateKey.generate()

    @property
    def share(self) -> bytes:
        """The public half, 32 octets."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        return self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def secret(self, their_share: bytes, salt: bytes, context: bytes) -> bytes:
        """The key that both sides derive. Raises ValueError for a share of low order or of a wrong length."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        try:
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(their_share))
        except ValueError:
            raise ValueError("this KEY-SHARE is no public key") from None
        return HKDF(SHA256(), SECRET_LENGTH, salt or None, context).derive(shared)
