"""Ask a server of `python -m inference.serve` about images, with the standard library alone.

python serve_client.py http://127.0.0.1:8000 a.png b.dcm …          # a line of JSON an image
The key, where the server asks for one, is in the environment: HYBRIDMEDNET_API_KEY.
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TRIES = 10


def ask(url, content=None):
    """The answer of a route as JSON; waits where the server says that it is busy."""
    headers = {"Content-Type": "application/json", "X-API-Key": os.environ.get("HYBRIDMEDNET_API_KEY", "")}
    body = None if content is None else json.dumps(content).encode()
    for left in reversed(range(TRIES)):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=120) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 422:  # no image of the request could be predicted: each says why
                return json.load(error)
            if error.code != 503 or not left:
                sys.exit(f"error: {error.code} {error.read().decode(errors='replace')}")
            time.sleep(int(error.headers.get("Retry-After", 1)))
        except OSError as error:
            sys.exit(f"error: {url} does not answer: {error}")
    return None


def main(server, *names):
    """Images in as many requests as the server's limits ask for; the exit code: 3 where some had an error."""
    most, failed = int(ask(f"{server}/model")["limits"]["images"]), 0
    for first in range(0, len(names), most):
        images = [
            {"name": name, "data": base64.b64encode(Path(name).read_bytes()).decode()}
            for name in names[first : first + most]
        ]
        for answer in ask(f"{server}/predict", {"images": images})["answers"]:
            failed += answer["error"] is not None
            print(json.dumps(answer, ensure_ascii=False))
    return 3 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1].rstrip("/"), *sys.argv[2:]))
