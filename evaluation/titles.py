"""What classes are called in reports and figures, where DATA.class_titles says so; files keep their names."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

from evaluation.records import Results
from evaluation.scored_split import ScoredSplit


def title_of(name: str, titles: Mapping[str, str]) -> str:
    """The title of a class, its name where it has none."""
    return titles.get(name, name)


def titled_split(scored: ScoredSplit, titles: Mapping[str, str]) -> ScoredSplit:
    """The same images and scores under the titles of the classes."""
    return replace(scored, class_names=tuple(title_of(name, titles) for name in scored.class_names))


def titled_results(results: Results, titles: Mapping[str, str]) -> Results:
    """A copy of the results in which classes have their titles."""
    titled = deepcopy(results)
    groups = [group for subgroup in titled["subgroups"] for group in subgroup["groups"]]
    comparisons = [titled["comparison"], *(one["comparison"] for one in titled["without"])]
    for row in (*titled["classes"], *(row for group in groups for row in group["classes"])):
        row["name"] = title_of(row["name"], titles)
    for compared in (row for one in comparisons if one for row in one["classes"]):
        compared["name"] = title_of(compared["name"], titles)
    decision = titled["decision"]
    decision["classes"] = [title_of(name, titles) for name in decision["classes"]]
    decision["thresholds"] = {title_of(name, titles): limit for name, limit in decision["thresholds"].items()}
    if decision["positive_class"] is not None:
        decision["positive_class"] = title_of(decision["positive_class"], titles)
    for subgroup in titled["subgroups"]:
        if subgroup["gap"]:
            subgroup["gap"]["classes"] = [title_of(name, titles) for name in subgroup["gap"]["classes"]]
    return titled
