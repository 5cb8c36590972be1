"""The plan in plain words, and who is left out of a run."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from depin_nb.core.errors import NoWorkers
from depin_nb.core.lease import StrategyConfig
from depin_nb.jupyter import tables
from depin_nb.loop.ship.manifest import Item, Manifest
from depin_nb.session.lessor import Lessor
from depin_nb.session.options import TrainOptions
from depin_nb.session.plan import Plan
from depin_nb.session.planning import Fitness, caveats

ITEMS = (Item("data", "dataset", 40_000), Item("model", "model", 9_000), *(Item(f"n{i}", "number", 5) for i in range(12)))
MANIFEST = Manifest(ITEMS, ("config.api_key",), ("log (TextIOWrapper)",), (("numpy", "2.4"), ("tokenizers", "0.22"), ("torch", "2.13")))
PLAN = Plan(
    where="fit(), line 4: for x, y in loader",
    strategy=StrategyConfig("local", solo=False, inner_steps=15),
    reason="home links are slow",
    workers=3,
    iterations=1200,
    flops_per_iteration=2_500_000,
    seconds_per_iteration=0.0123,
    program_bytes=6_000,
    blob_bytes=43_000,
    state_bytes=9_000,
    change_bytes=1_250,
    stays=("log (TextIOWrapper)",),
    ships=("model (Sequential)",),
    caveats=("the samples are fetched here, and leases carry them", "each iteration sees the same full batch: more workers won't help"),
    rows=(),
    unit_bytes=700,
    data="the samples are fetched here, and leases carry them",
    lacking=("phone-2 lacks tokenizers",),
    manifest=MANIFEST,
)


def test_the_plan_says_what_it_will_do_most_important_first():
    facts = dict(PLAN.facts())
    assert next(iter(facts)) == "Loop"
    assert facts["Loop"] == "fit(), line 4: for x, y in loader -> 1,200 iterations on 3 workers"
    assert facts["Shared out"] == "the iterations: each worker takes about 15 in a row, then all are merged"
    assert facts["Stays here"] == "prints and bookkeeping, log (TextIOWrapper)"
    assert facts["Data"] == PLAN.data
    assert facts["Sent once"] == "49.0 kB to each worker: data 40.0 kB, program 6.0 kB"
    assert facts["Each lease"] == "700 B an iteration and a version of 9.0 kB down; its change, about 1.2 kB, up"
    assert facts["Packages"] == "tokenizers 0.22, numpy 2.4, torch 2.13"
    assert facts["Withheld"].startswith("config.api_key: looks like a secret")
    assert facts["Left out"] == "phone-2 lacks tokenizers"
    assert [sentence for heading, sentence in PLAN.facts() if heading == "Note"] == [PLAN.caveats[1]]  # the data's way is said once


def test_the_headline_is_the_loop_and_the_way_and_says_things_once():
    assert PLAN.headline() == f"{PLAN.loop()}, local: home links are slow"
    long = replace(PLAN, where="the cell, line 4: for x in " + "y" * 200)
    assert long.loop().endswith("… -> 1,200 iterations on 3 workers")
    solo = "line 7: `best` decides what happens next"
    told = replace(PLAN, caveats=(f"one worker does it all: {solo}", "the samples are fetched here"))
    assert "one worker does it all" in told.notices()[0]
    told = replace(told, reason=f"one worker runs every iteration in order: {solo}")
    assert "one worker does it all" not in " ".join(told.notices())
    assert "one worker does it all" not in told.text()


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (StrategyConfig(), "nothing: one worker runs every iteration in the loop's order"),
        (StrategyConfig("sync", solo=False), "the iterations, 3 at a time: each worker takes one of every 3"),
    ],
)
def test_what_is_shared_out_follows_the_strategy(strategy, words):
    assert dict(replace(PLAN, strategy=strategy).facts())["Shared out"] == words


def test_a_plan_with_little_to_say_has_no_empty_lines():
    small = replace(PLAN, manifest=Manifest(), lacking=(), data="", caveats=(), stays=(), iterations=None)
    assert all(sentence for _, sentence in small.facts())
    assert {"Packages", "Withheld", "Left out", "Data", "Note"}.isdisjoint(dict(small.facts()))
    assert dict(small.facts())["Loop"].endswith("an unknown number of iterations on 3 workers")
    assert small.items() == []
    assert "What leaves" not in small.text()


def test_the_table_of_what_leaves_is_short_and_complete():
    items = PLAN.items()
    assert items[:2] == [("data", "dataset", "40.0 kB"), ("model", "model", "9.0 kB")]
    assert items[-1] == ("6 more", "number", "30 B")
    assert len(items) == 9
    text = PLAN.text()
    assert "What leaves this machine:" in text
    assert max(map(len, text.splitlines())) < 140


def test_text_and_html_show_the_same():
    shown = tables.plan(PLAN)
    for words in ("phone-2 lacks tokenizers", "config.api_key", "40.0 kB", "6 more", "each worker takes about 15"):
        assert words in shown.text
        assert words in shown.html
    assert tables.plan(replace(PLAN, manifest=Manifest())).html.count("<table") == 1


def test_names_of_the_users_are_text_in_html():
    odd = replace(PLAN, manifest=Manifest((Item("<img src=x>", "<b>", 1),), ("<i>",)))
    html = tables.plan(odd).html
    assert "<img src=x>" not in html
    assert "&lt;img src=x&gt;" in html


def test_notices_while_it_runs_name_what_was_withheld_and_left_out():
    notices = PLAN.notices()
    assert notices[: len(PLAN.caveats)] == list(PLAN.caveats)
    assert "withheld: config.api_key: looks like a secret" in notices[-2]
    assert notices[-1] == "left out: phone-2 lacks tokenizers"


# --- who can take part ---------------------------------------------------------------------------------------


class Client:
    def __init__(self, **answer):
        self.answer = {"lacks": {}, "other": {}, "uncompiled": [], "links": {}, **answer}
        self.asked = []

    def call(self, op, **request):
        self.asked.append((op, request))
        return self.answer


def lessor(client, count=3, **options):
    devices = [SimpleNamespace(worker_id=f"w-{i}", simulated=False, kind="local") for i in range(count)]
    return Lessor(
        client, TrainOptions(**options), workers=devices, backend="local", source="", on_status=lambda s: None, newest_kept=lambda r: None
    )


def shipment(**more):
    return SimpleNamespace(manifest=MANIFEST, compiled=(), caveats=(), **more)


def test_workers_that_lack_a_package_are_left_out_and_the_strategy_is_chosen_anew():
    client = Client(lacks={"w-1": ["tokenizers"]})
    made = lessor(client)
    assert made.admit(shipment()) is True
    assert [d.worker_id for d in made.workers] == ["w-0", "w-2"]
    assert client.asked == [("needs", {"packages": dict(MANIFEST.packages)})]
    assert made.admit(shipment()) is False


def test_with_nobody_left_it_is_refused_with_the_names():
    made = lessor(Client(lacks={f"w-{i}": ["tokenizers", "datasets"] for i in range(3)}))
    with pytest.raises(NoWorkers, match="w-0 lacks tokenizers, datasets; w-1 lacks") as raised:
        made.admit(shipment())
    assert "Install the packages" in str(raised.value)


def test_other_versions_and_missing_compilers_are_said_of_those_that_take_part():
    fitness = Fitness({"w-9": ["x"]}, {"w-0": ["torch 2.12"], "w-2": ["torch 2.12"], "w-9": ["torch 1.0"]}, ("w-2", "w-9"))
    assert fitness.caveats(["w-0", "w-2"], ["fast (inductor)"]) == [
        "w-0, w-2: other versions than here: torch 2.12",
        "fast (inductor) runs uncompiled on w-2: no compiler there",
    ]
    assert fitness.caveats(["w-0"], []) == ["w-0: other versions than here: torch 2.12"]
    assert fitness.sentences() == ("w-9 lacks x",)


def test_names_to_send_reach_the_loop():
    assert lessor(Client(), send=("api_key",)).send == ("api_key",)
    assert TrainOptions(send=("api_key",)).asked() == {"send": ["api_key"]}


def test_caveats_of_the_shipment_are_among_those_of_the_plan():
    facts = SimpleNamespace(caveats=["a"], solo=["line 3: `h` is handed on"], stepped={})
    entering = SimpleNamespace(facts=facts, source_note="fetched here", samples=8)
    sent = SimpleNamespace(caveats=("`w` was computed before the loop",), compiled=(), manifest=Manifest())
    workers = [SimpleNamespace(worker_id="w-0"), SimpleNamespace(worker_id="w-1")]
    assert caveats(entering, StrategyConfig(), sent, workers, Fitness()) == [
        "a",
        "`w` was computed before the loop",
        "one worker does it all: line 3: `h` is handed on",
        "fetched here",
    ]
