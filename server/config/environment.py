"""The environment variables that this program reads, and warnings of names that resemble them.

Variables of tests begin with UNDERSTUDY_TEST_. Kubernetes sets others in the containers beside a
service whose name begins with "understudy": `UNDERSTUDY_SERVICE_HOST`, `UNDERSTUDY_PORT_80_TCP` ...
"""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

from server.config.files import ENV_CONFIG
from server.config.settings import (
    FILE_NAME,
    FILE_ONLY,
    PREFIX,
    Settings,
    is_service_address,
)

ENV_KEY = "UNDERSTUDY_API_KEY"
ENV_URL = "UNDERSTUDY_URL"
ENV_CA = "UNDERSTUDY_CA"
ENV_CACHE = "UNDERSTUDY_CACHE"  # read by `engine.cache_files`
OF_SETTINGS = frozenset(
    PREFIX + name.upper() for name in Settings.model_fields if name not in FILE_ONLY
)
VARIABLES = OF_SETTINGS | {ENV_KEY, ENV_URL, ENV_CA, ENV_CONFIG, ENV_CACHE}
OF_OTHERS = re.compile(
    r"UNDERSTUDY_(TEST_\w+|(\w+_)?SERVICE_(HOST|PORT)(_\w+)?|(\w+_)?PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)


def unknown_variables(env: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each variable of this program's prefix in `env` that nothing reads."""
    short = [name.removeprefix(PREFIX) for name in VARIABLES]  # else all resemble each other
    for name, value in sorted(env.items()):
        is_ours = name.startswith(PREFIX) and value and name not in VARIABLES
        if not is_ours or OF_OTHERS.fullmatch(name) or is_service_address(name, value):
            continue
        own = name.removeprefix(PREFIX)
        if own.lower() in FILE_ONLY:
            hint = f"`{own.lower()}` is a key of {FILE_NAME} only."
        elif near := get_close_matches(own.upper(), short, n=1):
            hint = f"Did you mean {PREFIX}{near[0]}?"
        else:
            hint = "docs/settings.md lists the known ones."
        yield f"the environment variable {name} is not known and has no effect. {hint}"
