#!/usr/bin/env python3
"""What of the sweep needs neither GPU nor torch: cells, the join of runs, tables, pictures.

    python3 tests/bench/results_test.py
"""
import importlib.util
import json
import os
import tempfile
import unittest

import plot
import results
import shapes


def run(shares, gpu="a GPU", versions=None, group="cols"):
    """A run of a forward cell per width, 1,000 us at best: {width: {name: share or None}}."""
    cells = []
    for cols, found in shares.items():
        timed = {name: {"us": 1000 / share, "share": share} if share else {"failed": "no room"}
                 for name, share in found.items()}
        cells.append({"op": "fwd", "dtype": "bf16", "rows": 8, "cols": cols, "layout": "packed",
                      "groups": [group], "ceiling_us": 1000.0, "results": timed})
    about = {"date": "2030-01-02T03:04:05+00:00", "gpu": gpu, "driver": "1", "absent": {},
             "versions": versions or {}}
    return {"format": results.FORMAT, "runs": [about], "cells": cells}


class Shapes(unittest.TestCase):
    def test_every_cell_is_timed_once_and_knows_its_groups(self):
        cells = shapes.select(list(shapes.GROUPS))
        self.assertEqual(len(cells), len(set(cells)))
        for name, make in shapes.GROUPS.items():
            listed = make()
            self.assertEqual(len(listed), len(set(listed)), name)
            self.assertTrue(all(name in cells[cell] for cell in listed), name)
        self.assertEqual(cells[shapes.Cell("fwd", "bf16", 64, 8192)], ["table", "decode"])

    def test_parse(self):
        self.assertEqual(shapes.parse("bwd,fp16,3,7"), shapes.Cell("bwd", "fp16", 3, 7))
        self.assertEqual(shapes.parse("add,bf16,3,7,strided").layout, "strided")
        for wrong in ("bwd,fp16,3", "mul,fp16,3,7", "fwd,fp8,3,7", "fwd,fp16,0,7",
                      "fwd,fp16,3,7,x"):
            self.assertRaises(ValueError, shapes.parse, wrong)


class Merge(unittest.TestCase):
    def test_medians_and_the_union_of_what_was_timed(self):
        doc = results.merge([run({128: {"ours": 0.9, "torch": 0.5}}, versions={"torch": "2"}),
                             run({128: {"ours": 0.7}, 256: {"liger": None}}),
                             run({128: {"ours": 0.8, "liger": None}, 256: {"liger": 0.4}})])
        first, second = doc["cells"]
        self.assertEqual(len(doc["runs"]), 3)
        self.assertEqual(list(first["results"]), ["ours", "torch", "liger"])
        self.assertEqual(first["results"]["ours"]["share"], 0.8)
        self.assertEqual(first["results"]["ours"]["spread"], [0.7, 0.9])
        self.assertEqual(first["results"]["ours"]["runs"], 3)
        self.assertEqual(first["results"]["liger"], {"failed": "no room"})
        self.assertEqual(second["results"]["liger"]["share"], 0.4)

    def test_what_does_not_belong_together_is_refused(self):
        one = run({128: {"ours": 0.9}}, versions={"librmsnorm": "0.1.0 (1234)"})
        for other in (run({}, gpu="another"), run({}, versions={"librmsnorm": "0.1.0 (5678)"}),
                      results.merge([one])):
            self.assertRaises(ValueError, results.merge, [one, other])


class Shown(unittest.TestCase):
    doc = run({cols: {"ours": 0.97, "torch": 0.5, "liger": 0.9 if cols <= 65536 else None,
                      "quack": 0.98} for cols in shapes.COLS})

    def test_summary_counts_ties_as_first(self):
        text = results.summary(self.doc)
        self.assertIn("| cols, forward | 33 | 0.97 (0.97) | 0.50 (0.50) | 0.90 (0.90) 4 fail |",
                      text)
        self.assertTrue(text.endswith("| 33 of 33 |"))

    def test_tables_are_in_the_order_of_the_group(self):
        decode = run({cols: {"ours": 0.9} for cols in (8192, 2048)}, group="decode")
        lines = results.microseconds(decode, "decode", "fwd").splitlines()
        self.assertEqual([line.split("|")[1] for line in lines[2:]], [" 8 x 2048 ", " 8 x 8192 "])
        self.assertIn("| bf16 8 x 131072 | 1000.0 | 0.97 | 0.50 | fails | 0.98 |",
                      results.full(self.doc, "cols", "fwd"))

    def test_labels_keep_their_distance(self):
        placed = plot.spread_out([0.5, 0.97, 0.96, 0.98, 1.2], 0.1, 0.0, 1.05)
        ordered = sorted(placed)
        self.assertLessEqual(max(placed), 1.05)
        self.assertTrue(all(b - a > 0.0999 for a, b in zip(ordered, ordered[1:])))
        self.assertLess(placed[2], placed[1])

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "no matplotlib")
    def test_pictures(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "forward.svg")
            plot.draw(self.doc, "fwd", path)
            with open(path, encoding="utf-8") as file:
                self.assertIn("</svg>", file.read())

    def test_saved_and_loaded(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "run.json")
            results.save(self.doc, path)
            self.assertEqual(results.load(path), self.doc)
            self.assertEqual(os.listdir(folder), ["run.json"])
            with open(path, "w", encoding="utf-8") as file:
                json.dump([], file)
            self.assertRaises(ValueError, results.load, path)


if __name__ == "__main__":
    unittest.main()
