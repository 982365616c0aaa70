"""A program that takes a while: the sum of squares of x - 1, of standard input.

``python program.py SECONDS FAILS HANGS``: the ids of points that fail or hang,
separated by commas. It needs nothing but Python.
"""

import json
import os
import sys
import time

seconds, fails, hangs = sys.argv[1:]
number = os.environ["ZOJAX_QUERY_ID"]
if number in fails.split(","):
    sys.exit(f"point {number} has no solution")
time.sleep(3600.0 if number in hangs.split(",") else float(seconds))
print(sum((x - 1.0) ** 2 for x in json.load(sys.stdin)))
