"""The public keys of a client: a JWKS that the operator registered, or one behind an address that was registered."""

import ssl
from pathlib import Path
from typing import Any

import httpx
import jwt
import orjson
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from vht_federate.errors import InputError, RefusedError

__all__ = ["ALGORITHMS", "fetch_keys", "read_keys", "verifying_key"]

ALGORITHMS = ("RS384", "ES384")
RSA_BITS = 2048
MAXIMUM = 65_536  # bytes of a key set
TIMEOUT_S = 5.0
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "k", "oth"})


def read_keys(content: bytes) -> dict[str, Any]:
    """A JWKS with at least one key for RS384 or ES384. Raises InputError VHT-INPUT-JWKS."""
    try:
        key_set = orjson.loads(content[: MAXIMUM + 1])
        keys = key_set["keys"]
        usable = [key for key in keys if _usable(key)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError("this is not a JWKS", code="VHT-INPUT-JWKS", hint='{"keys": [{"kty": …}]}') from error
    if any(_PRIVATE & set(key) for key in keys):
        raise InputError(
            "this JWKS holds a private key",
            code="VHT-INPUT-JWKS",
            hint="a client keeps its private key to itself: register the public one",
        )
    if not usable:
        raise InputError(
            "no key of this JWKS can verify RS384 or ES384",
            code="VHT-INPUT-JWKS",
            hint="RSA of 2048 bits or more, or EC P-384, each with a kid",
        )
    return {"keys": usable}


def fetch_keys(address: str, ca: Path) -> dict[str, Any]:
    """The JWKS behind ``address``. Raises RefusedError VHT-REFUSED-CLIENT-KEYS: without keys nobody is known."""
    context = ssl.create_default_context()
    context.load_verify_locations(ca)
    try:
        with (
            httpx.Client(verify=context, timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as http,
            http.stream("GET", address, headers={"Accept": "application/json"}) as response,
        ):
            content = b""
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAXIMUM:
                    break
            if response.status_code == 200:
                return read_keys(content)
    except (httpx.HTTPError, InputError, OSError):
        pass
    raise RefusedError("the client's registered key set cannot be read", code="VHT-REFUSED-CLIENT-KEYS")


def verifying_key(keys: dict[str, Any], kid: object, algorithm: str) -> Any:
    """The key of that kid for that algorithm; None where there is none."""
    for key in keys["keys"]:
        if key["kid"] == kid and _fits(key, algorithm):
            return jwt.PyJWK(key, algorithm=algorithm).key
    return None


def _fits(key: dict[str, Any], algorithm: str) -> bool:
    family = {"RS384": "RSA", "ES384": "EC"}[algorithm]
    return bool(key["kty"] == family and key.get("alg", algorithm) == algorithm)


def _usable(key: dict[str, Any]) -> bool:
    if key.get("kty") not in {"RSA", "EC"} or not isinstance(key.get("kid"), str) or _PRIVATE & set(key):
        return False
    try:
        public_key = jwt.PyJWK(key, algorithm="RS384" if key["kty"] == "RSA" else "ES384").key
    except (jwt.PyJWTError, ValueError):
        return False
    if isinstance(public_key, RSAPublicKey):
        return public_key.key_size >= RSA_BITS
    return isinstance(public_key, EllipticCurvePublicKey) and isinstance(public_key.curve, SECP384R1)
