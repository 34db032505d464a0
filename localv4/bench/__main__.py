"""``python -m localv4.bench REQUEST``: measures the tier in force, for `measure_kernels`."""

import json
import sys

from localv4.bench.kernels import Request, measure_tier

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    request = Request(asked["n_bytes"], asked["threads"], tuple(asked["tokens"]))
    try:
        result = measure_tier(request)
    except KeyboardInterrupt:
        sys.exit(130)
    print(json.dumps(result))
