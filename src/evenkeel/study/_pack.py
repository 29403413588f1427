"""A study without its curves: what was run and what came out, small enough to be committed or sent."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

from evenkeel.errors import StoreError
from evenkeel.study._folder import StudyFolder
from evenkeel.study._new_folder import check_new_folder, new_folder
from evenkeel.study._store import Store
from evenkeel.study._study import open_study

__all__ = ["pack"]


def pack(source: Path, out: Path) -> StudyFolder:
    """Copy a study's store and its report, all or none, and leave the tables of single runs behind.

    A copy of the copy is a study's folder: the same command goes on in it, and repeats nothing that was finished.

    Args:
        source: the study's folder; a running driver is not disturbed.
        out: a folder for the copy, new or empty.

    Returns:
        The copy.

    Raises:
        StoreError: if there is no study, or the copy cannot be written, or something is in the folder.
    """
    _, _, folder = open_study(source)
    check_new_folder(out, advice="name a new one for the packed study")
    try:
        with new_folder(out) as made:
            packed = StudyFolder(made)
            with closing(Store.reading(folder.store)) as store:
                store.copy_to(packed.store)
            for written in folder.written:
                if written.is_file() and not written.is_symlink():
                    shutil.copyfile(written, made / written.name)
    except OSError as error:
        raise StoreError(f"'{out}' cannot be written ({error.strerror}); free the disk or name another") from error
    return StudyFolder(out)
