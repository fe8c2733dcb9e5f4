"""Relatives and clean-for: sound against real sets of cases, complete, right on the families that matter."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from medloom.data.catalog import Basis, Catalog, Dataset, Overlap, load
from medloom.data.catalog.graph import Level
from medloom.data.catalog.vocabulary import RelationKind
from medloom.data.sample import Modality

NAMES = [f"set-{letter}" for letter in "abcdefg"]
RECALLED = "recalled, url given for checking"


def made(*relations: str, kinds: dict[str, Modality] | None = None, recalled: str = "") -> Catalog:
    """A catalogue of `a contains b` relations; recalled ones are those of dataset `recalled`."""
    overlaps = []
    for text in relations:
        a, word, b = text.split()
        basis = RECALLED if recalled in (a, b) else "read in the source"
        overlaps.append(Overlap(a=a, relation=RelationKind(word), b=b, basis_note=basis))
    names = sorted({end for o in overlaps for end in (o.a, o.b)} | {"alone"})
    kinds = kinds or {}
    return Catalog([Dataset(id=n, name=n, modalities=(kinds.get(n, Modality.CT),)) for n in names], overlaps)


def levels(catalog: Catalog, start: str) -> dict[str, str]:
    return {relative.id: relative.level.value for relative in catalog.related(start)}


def test_relations_are_followed_to_their_ends():
    catalog = made(
        "whole contains part", "crop derived-from part", "copy same-as whole", "mix shares-cases part"
    )
    assert levels(catalog, "crop") == {
        "part": "certain", "whole": "certain", "copy": "certain", "mix": "possible",
    }  # fmt: skip
    assert levels(catalog, "whole") == dict.fromkeys(("part", "crop", "copy", "mix"), "certain")
    assert levels(catalog, "alone") == {}


def test_parts_of_one_whole_may_share_but_members_of_an_umbrella_do_not():
    mixed = made("whole contains one", "whole contains two")
    assert levels(mixed, "one") == {"whole": "certain", "two": "possible"}
    apart = made("one member-of umbrella", "two member-of umbrella", "draw derived-from umbrella")
    assert levels(apart, "one") == {"umbrella": "certain", "draw": "possible"}
    assert levels(apart, "umbrella") == {"one": "certain", "two": "certain", "draw": "certain"}
    assert levels(apart, "draw") == {"umbrella": "certain", "one": "possible", "two": "possible"}


def test_images_of_another_kind_cannot_be_the_same_cases():
    kinds = {"brain": Modality.MRI, "mix": Modality.OTHER, "func": Modality.FMRI}
    catalog = made("mix shares-cases liver", "mix shares-cases brain", "mix shares-cases func", kinds=kinds)
    assert levels(catalog, "liver") == {"mix": "certain"}
    assert levels(catalog, "brain") == {"mix": "certain", "func": "possible"}


def test_the_path_reads_step_by_step_and_tells_the_weakest_basis():
    catalog = made("a contains b", "c derived-from b", "d shares-cases c", recalled="c")
    found = {relative.id: relative for relative in catalog.related("a")}
    assert found["b"].basis is Basis.READ
    assert found["d"].basis is Basis.RECALLED
    assert found["d"].steps == "a > b >? c ~? d"
    ends = [step.a for step in found["d"].path] + [found["d"].path[-1].b]
    assert {"a", "b", "c", "d"} >= set(ends)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_certain_relatives_do_share_and_none_is_missed(data: st.DataObject):
    """Draw sets of cases, relate them by relations that are true of them, and compare with the sets."""
    some = st.frozensets(st.integers(0, 9), min_size=1, max_size=5)
    cases = {name: data.draw(some, label=name) for name in NAMES}
    true: list[str] = []
    for a in NAMES:
        for b in NAMES:
            if a < b and cases[a] == cases[b]:
                true.append(f"{a} same-as {b}")
            elif a != b and cases[a] > cases[b]:
                true += [f"{a} contains {b}", f"{b} derived-from {a}"]
            elif a < b and cases[a] & cases[b]:
                true.append(f"{a} shares-cases {b}")
    told = data.draw(st.lists(st.sampled_from(true), unique=True, max_size=10)) if true else []
    catalog = made(*told)
    for start in (name for name in NAMES if name in catalog):
        found = {relative.id: relative.level for relative in catalog.related(start)}
        assert start not in found
        assert all(cases[start] & cases[name] for name, level in found.items() if level is Level.CERTAIN)
        assert set(found) == connected(told, start)


def connected(told: list[str], start: str) -> set[str]:
    """Every dataset that a chain of relations ties to `start`, by repeated merging."""
    group = {start}
    while True:
        ends = [{text.split()[0], text.split()[2]} for text in told]
        more = set().union(group, *(pair for pair in ends if pair & group))
        if more == group:
            return group - {start}
        group = more


def test_clean_for_the_liver_task_excludes_lits_and_all_its_relatives():
    catalog = load(own=())
    found = catalog.clean_for("msd-task03-liver")
    touched = found.ids
    assert {
        "msd-task03-liver", "lits", "ircadb-3d", "abdomenatlas", "abdomenatlas-8k", "abdomenatlas-mini",
        "abdomenct-1k", "flare21", "ct-org", "uls23", "ctspine1k", "organamnist", "organcmnist",
        "organsmnist",
        "organmnist3d", "medmnist",
    } <= touched  # fmt: skip
    assert {relative.id for relative in catalog.related("lits")} <= touched
    assert not touched & {dataset.id for dataset in found.clean}
    assert len(touched) + len(found.clean) == len(catalog)
    assert {"pathmnist", "ham10000", "brats-2021", "drive"}.isdisjoint(touched)
    certain = [relative.id for relative in found.excluded if relative.level is Level.CERTAIN]
    assert "kits19" not in certain and "kits19" in touched  # beside LiTS in AbdomenCT-1K: may, not must


def test_clean_for_says_what_cannot_be_known():
    catalog = load(own=())
    found = catalog.clean_for("msd-task03-liver")
    assert "sliver07" in {dataset.id for dataset in found.unknown}  # liver CT, no relation recorded
    assert any("content" in sentence for sentence in found.limits)
    assert any("recalled" in sentence for sentence in found.limits)
    lonely = catalog.clean_for("msd-task05-prostate")
    assert not lonely.excluded
    assert any("nothing could be excluded" in sentence for sentence in lonely.limits)
    spleen = {dataset.id for dataset in catalog.clean_for("msd-task10-colon").unknown}
    spleen |= catalog.clean_for("msd-task10-colon").ids
    assert {"msd-task07-pancreas", "msd-task08-hepaticvessel", "msd-task09-spleen"} <= spleen  # one hospital


def test_a_task_record_stands_for_its_related_datasets():
    found = load(own=()).clean_for("realdata-derm")
    assert {"ham10000", "dermamnist", "isic-2018"} <= set(found.targets)
    assert "bcn20000" in found.ids  # through isic-2019
