"""Settings of all tests: waiting threads do not spin, and the network is not used."""

import os
from tempfile import TemporaryDirectory

# This must precede the import of torch: spinning OpenMP threads slow each other on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
# Packed weights go to a folder that is removed after the test run.
_CACHE = TemporaryDirectory(prefix="understudy-tests-")
os.environ["UNDERSTUDY_CACHE"] = _CACHE.name
