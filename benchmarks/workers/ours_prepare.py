"""rankloom's `prepare` on the same rows in Criteo's raw format."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from rankloom.data.prepare import prepare
from rankloom.data.table_schema import Categorical, LabelSpec, RandomSplit, TableInput, TableSchema

NUMBERS = tuple(f"I{i}" for i in range(1, 14))
IDS = tuple(f"C{i}" for i in range(1, 27))


def main(arguments: SimpleNamespace) -> None:
    schema = TableSchema(
        name="criteo-format",
        input=TableInput(
            files=arguments.table, format="tsv", header=False, columns=("label", *NUMBERS, *IDS)
        ),
        features={
            **{name: Categorical(transform="criteo_ln2", min_count=10) for name in NUMBERS},
            **{name: Categorical(min_count=10) for name in IDS},
        },
        labels={"label": LabelSpec()},
        split=RandomSplit(valid=0, test=0),
    )
    prepare(schema, arguments.out, root=Path("/"))


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
