"""The variables of functions that are running, read without changing anything."""

from __future__ import annotations

import sys

from aslab._variables import variables


def test_each_variable_is_found_with_its_name_and_nothing_that_has_no_value() -> None:
    outside = "outside"

    def runs(one: int, *rest: int, key: int = 3, **others: int) -> dict[str, object]:
        shared, gone, gone_too = [one], 1, 2
        del gone, gone_too

        def inner() -> object:
            return shared, outside, gone_too  # noqa: F821

        names = locals()
        before = dict(names)
        late = inner.__name__
        found = dict(variables(sys._getframe()))
        assert names == before, "locals() is as it was"
        assert late
        for name, value in (("names", names), ("before", before), ("inner", inner)):
            assert found.pop(name) is value
        return found

    assert runs(1, 2, other=4) == {
        "one": 1,
        "rest": (2,),
        "key": 3,
        "others": {"other": 4},
        "shared": [1],
        "outside": "outside",
        "late": "inner",
    }


def test_so_are_those_of_a_module_and_of_a_class() -> None:
    names: dict[str, object] = {"variables": variables, "sys": sys}
    exec("class Body:\n    here = 5\n    found = dict(variables(sys._getframe()))\nfound = Body.found", names)
    found = names["found"]
    assert isinstance(found, dict)
    assert found["here"] == 5
