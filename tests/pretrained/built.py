"""Every preset built under `eval_shape`, as JSON: its number of parameters, and how it is saved.

A process of its own, since it takes minutes under the shape checks and seconds without.
"""

import json

import eqxformer as ef
from eqxformer.checkpoints.rebuild import expected
from eqxformer.pretrained.express import expression


def built(name: str) -> dict[str, object]:
    """The number of parameters of a preset and the settings that it is saved with."""
    config = ef.preset(name)
    skeleton = ef.shapes(config)
    settings = expression(config, expected(skeleton)).settings
    return {"parameters": ef.count(skeleton), "settings": settings}


def main() -> None:
    """Prints what is built, or the error in its place, by the presets' names."""
    found = {}
    for name in ef.preset_names():
        try:
            found[name] = built(name)
        except ValueError as error:
            found[name] = {"error": str(error)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
