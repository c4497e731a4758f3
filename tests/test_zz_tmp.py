import sys
sys.path.insert(0, "/tmp/oldpages")
from test_capacity import books, cells, folder, results  # noqa
from lab.capacity import runs
from lab.capacity.report import load_records, write_capacity_page
import capacity_report_old as old

def test_cmp(cells, results, tmp_path):
    records = load_records(runs.cell_file(cell, results) for cell in cells)
    chunk = {"column":"AE","size":{"chunks":40,"test":8,"max_steps":2},"test":{"tokens":{"share":.5,"low":.1,"high":.2},"chunks":{"share":.3}},"train":{"tokens":{"share":.4}},"asked":{"tokens":6},"trained_parameters":1234}
    import pathlib
    for d, f in (("a", old.write_capacity_page), ("b", write_capacity_page)):
        p = pathlib.Path("/tmp/cap_" + d); p.mkdir(exist_ok=True)
        f(records, p / "capacity.md", 2, [chunk])
