"""FuxiCTR 2.3.10's own preprocessing of a Criteo-format CSV."""

import json
import sys
from types import SimpleNamespace

from fuxictr.preprocess import FeatureProcessor, build_dataset


def main(arguments: SimpleNamespace) -> None:
    fields = [f"I{i}" for i in range(1, 14)] + [f"C{i}" for i in range(1, 27)]
    processor = FeatureProcessor(
        feature_cols=[
            {"name": fields, "active": True, "dtype": "str", "type": "categorical", "fill_na": ""}
        ],
        label_col={"name": "label", "dtype": "float"},
        dataset_id="prepared",
        data_root=arguments.out,
    )
    build_dataset(
        processor,
        train_data=arguments.table,
        data_format="csv",
        min_categr_count=10,
        data_block_size=arguments.block_rows,
    )


if __name__ == "__main__":
    main(SimpleNamespace(**json.loads(sys.argv[1])))
