"""No files import each other in a circle."""

from __future__ import annotations

from graphlib import TopologicalSorter

import grimp  # import-linter reads the packages with it; its own contract compares folders, not files


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports for type checking, and those inside functions, count too."""
    graph = grimp.build_graph("fer_runtime", "fer_train", "fer_export", "fer_bench", cache_dir=None)
    assert len(graph.modules) > 300
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises a CycleError that names the files
