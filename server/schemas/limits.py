"""Limits on the contents of request bodies. They protect the server; known clients stay far below.

The length in bytes is a setting (`max_body_bytes`). These limits are for contents that take more
time and memory than their bytes suggest: `server.schemas.scan` checks depth and number of values
while a body arrives, the schemas check the lists, and /openapi.json states the limits.
"""

MAX_DEPTH = 64  # nested arrays and objects: parsers, templates and grammars recurse
MAX_IDS = 200_000  # token ids of a list, 1.2 MB of digits; a longer prompt can be sent as text
# All values of a body without its keys: the longest prompt and the other fields. A value of one
# or two bytes becomes an object of up to 1 KB.
MAX_VALUES = MAX_IDS + 100

# Messages, items and blocks of a conversation, and the parts of a message. Agents reach some
# thousands. Each has about ten values, so more would exceed `MAX_VALUES` anyway.
MAX_MESSAGES = 20_000
MAX_TOOLS = 20_000  # agents offer some hundreds; the size of the body bounds them first
MAX_PROMPTS = 2048  # of one request; evaluation harnesses send some hundreds
MAX_CONTINUED = 20_000  # choices with tokens to go on after
MAX_CHOICES = 20_000  # strings of `structured_outputs.choice`; all become one grammar
MAX_STOPS = 1024  # stop strings of one request; all are looked for at every token
MAX_STOP_LENGTH = 65_536  # characters of all stop strings of a request
MAX_STOP_IDS = 16_384
MAX_BIASES = MAX_IDS  # clients exclude whole scripts: some ten thousand tokens
MAX_NAMES = 1024  # lists of names (`include`) and pairs of `metadata`
