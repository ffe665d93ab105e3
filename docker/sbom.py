"""Writes the image's bill of materials: CycloneDX 1.6 of the running Python and all its installed packages.

    python sbom.py > sbom.json

The same packages give the same bytes: no time and no random numbers.
"""

import json
import platform
import re
import sys
import uuid
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions


def component(distribution: Distribution) -> dict[str, object]:
    """A package as a CycloneDX component."""
    name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"]).lower()
    purl = f"pkg:pypi/{name}@{distribution.version}"
    found: dict[str, object] = {"type": "library", "bom-ref": purl, "name": name, "version": distribution.version}
    licenses = list(licenses_of(distribution))
    return {**found, "purl": purl, **({"licenses": licenses} if licenses else {})}


def licenses_of(distribution: Distribution) -> Iterator[dict[str, object]]:
    """A package's license: the expression if it has one, else names."""
    metadata = distribution.metadata
    classified = [c.rpartition(" :: ")[2] for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    if expression := metadata.get("License-Expression"):
        yield {"expression": expression}
    elif classified:
        yield from ({"license": {"name": name}} for name in classified)
    elif text := metadata.get("License"):
        yield {
            "license": {"name": text.strip().splitlines()[0][:100]}
        }  # some packages put the whole license text there


def requirements(distribution: Distribution, installed: dict[str, str]) -> list[str]:
    """References of the installed packages that a package requires, without extras."""
    needed = [line for line in distribution.requires or () if "extra ==" not in line]
    names = (re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]).lower() for line in needed)
    return sorted({installed[name] for name in names if name in installed})


def bill() -> dict[str, object]:
    """The whole document."""
    found = sorted(distributions(), key=lambda d: d.metadata["Name"].lower())
    parts = {str(part["name"]): part for part in map(component, found)}
    references = {name: str(part["bom-ref"]) for name, part in parts.items()}
    logstep = {**parts.pop("logstep"), "type": "application"}
    version = platform.python_version()
    python = {"type": "platform", "bom-ref": f"pkg:generic/python@{version}", "name": "python", "version": version}
    content = [python, *parts.values()]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([logstep, content])).urn,
        "version": 1,
        "metadata": {"component": logstep},
        "components": content,
        "dependencies": [
            {"ref": str(component(each)["bom-ref"]), "dependsOn": requirements(each, references)} for each in found
        ],
    }


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=2)
    sys.stdout.write("\n")
