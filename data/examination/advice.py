"""What to do about what the program itself warns of when it opens data: the same for training and for doctor.py."""

from __future__ import annotations

# A part of the message → what to do; the first key that fits counts.
# Parts of what is logged as a warning and takes nothing from the result.
TOLD = ("gives patient_id", "gives age", "gives sex", "columns taken as classes", "was read, not", "image left out (")

ADVICE = {
    "stand in both": "keep one copy of each, or give the copies one patient_id, so that they stay on one side",
    "have different labels": "correct the labels of the copies, or keep one of each",
    "of different patients": "give the copies one patient_id, or keep one of each",
    "are copies of others": "keep one of each: the copies count several times",
    "patients stand in more than one split": "remove the column of splits to have one drawn by patient",
    "names no patient": "add a column patient_id, or name yours by DATA.columns.patient_id",
    "name no patient": "add a column patient_id, or name yours by DATA.columns.patient_id",
    "the test split is empty": "set DATA.test_split, or say in reports that the figures are of val",
    "have one value everywhere": "take them out, or export them again",
    "black or white nearly everywhere": "look at one of them; export them with another window, or set DATA.window",
    "nearly no contrast": "look at one of them; crop burnt-in marks, or export them with a window",
    "NaN or infinite": "export them again, or take them out",
    "EXIF": "look at one of them: it may lie on its side",
    "far beyond training's": "bring the column to one unit, or empty cells that are slips",
    "count as 'other'": "bring other spellings of a category to one",
    "a label under another name": "take the column out of DATA.table.columns: it says the answer",
    "is more than the": "lower it: an optimizer step then sees what was meant",
}
