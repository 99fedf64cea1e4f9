"""The multi-scenario and multi-task models of the catalog: name -> config, class, paper."""

from rankloom.entry import Entry
from rankloom.scenario.separate import Separate, SeparateConfig
from rankloom.scenario.shared_bottom import SharedBottom, SharedBottomConfig

SCENARIO_ENTRIES: tuple[Entry, ...] = (
    Entry(
        name="shared_bottom",
        family="scenario",
        title="Shared-bottom",
        paper="Caruana, Machine Learning 28, 1997, doi:10.1023/A:1007379606734",
        year=1997,
        idea="One network for all, a small tower for every scenario or task.",
        config=SharedBottomConfig,
        build=SharedBottom,
    ),
    Entry(
        name="separate",
        family="scenario",
        title="One model per scenario",
        paper="baseline of Cheng et al., CIKM 2023, arXiv:2603.21209",
        year=2023,
        idea="Every scenario has a model of its own; nothing is shared.",
        config=SeparateConfig,
        build=Separate,
        requires=("scenario",),
    ),
)
