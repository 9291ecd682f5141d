"""The node on an engine whose pictures order its faults: `python -m rvm_perception.faulty_node`.

For `rvm soak` and tests. Everything but the engine is the node that is shipped, started as it is shipped.
"""

from __future__ import annotations

import sys
from typing import Any

from rvm_core.engines import Engine
from rvm_perception import __main__
from rvm_perception.faulty_engine import FaultyEngine


def main(argv: list[str] | None = None) -> int:
    """As `rvm_perception.__main__.main`."""
    from rvm_perception import engine_setup

    create = engine_setup.create_engine

    def create_faulty(*given: Any, **options: Any) -> Engine:
        return FaultyEngine(create(*given, **options))

    vars(engine_setup)["create_engine"] = create_faulty
    return __main__.main(argv)


if __name__ == "__main__":
    sys.exit(main())
