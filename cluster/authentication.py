"""Who can reach a Ray cluster that is started here. To be called before Ray is imported."""

import secrets
from collections.abc import MutableMapping

MODE, TOKEN, TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


def want_token(env: MutableMapping[str, str], *, is_new: bool) -> None:
    """Let Ray want a token of all that connect, unless the user has said something else.

    Whoever may connect to a Ray cluster can run any code there.

    Args:
        env: the environment, which Ray's processes inherit.
        is_new: whether the cluster is started here. Its token is then a random one; that of another
            cluster comes from the environment, or from Ray's own file.
    """
    if is_new and MODE not in env:
        env[MODE] = "token"
        if TOKEN not in env and TOKEN_FILE not in env:
            env[TOKEN] = secrets.token_hex(32)


def start_here(env: MutableMapping[str, str]) -> None:
    """Prepare the start of a cluster of this machine alone.

    Its ports listen on loopback only: the first variable means that a cluster has one machine, and
    is named after the systems where that is the default. Otherwise most of Ray's ports listen on
    all addresses. Its processes have the usual priority: Ray lowers that of its workers, and
    engines are workers here.
    """
    env.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    env.setdefault("RAY_worker_niceness", "0")
