"""Reads a dashboard as Grafana's own SDK does, writes it again, and names every field that was lost or changed."""

import json
import sys

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard


def differences(ours, theirs, path=""):
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key in theirs:
                yield from differences(value, theirs[key], f"{path}.{key}")
            else:
                yield f"{path}.{key} is no field of Grafana's"
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, pair in enumerate(zip(ours, theirs)):
            yield from differences(*pair, f"{path}[{number}]")
    elif ours != theirs:
        yield f"{path} is {ours!r}, and Grafana reads {theirs!r}"


plugins.register_default_plugins()
with open(sys.argv[1], encoding="utf-8") as file:
    dashboard = json.load(file)
read = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
found = list(differences(dashboard, read))
print("\n".join(found))
sys.exit(1 if found else 0)
