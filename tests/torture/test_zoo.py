"""The zoo: every odd form is read right, as an independent reader sees it, or refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from medloom.data.errors import ReadError
from medloom.data.readers import read

from .form import Form
from .zoo import FORMS


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_each_form_is_read_right_or_refused(form: Form, tmp_path: Path) -> None:
    paths = form.make(tmp_path)
    if form.refused:
        with pytest.raises(ReadError, match=form.refused) as caught:
            read(paths, **form.read)
        message = str(caught.value)
        assert "\n" not in message and str(tmp_path) not in message
        assert len(message) > 30, "a reason names the file, what is wrong and what to do"
    else:
        assert form.check is not None
        form.check(paths, read(paths, **form.read))


def test_names_are_unique() -> None:
    names = [form.name for form in FORMS]
    assert sorted(set(names)) == sorted(names)
