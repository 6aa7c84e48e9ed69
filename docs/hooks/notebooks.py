"""Notebooks as pages: text and code as they are committed, without outputs, solutions folded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """A page beside every notebook, which itself is there to be fetched."""
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        name = Path(file.src_uri)
        text = page(json.loads(Path(file.abs_src_path).read_text(encoding="utf-8")), name.name)
        files.append(File.generated(config, str(name.with_suffix(".md")), content=text))
    return files


def page(notebook: dict[str, Any], name: str) -> str:
    """A notebook's cells as Markdown, with a link to it below the title."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            source = f"```python\n{source}\n```"
        if "solution" in cell["metadata"].get("tags", []):
            body = "\n".join(f"    {line}".rstrip() for line in source.splitlines())
            source = f'??? success "Solution"\n\n{body}'
        parts.append(source)
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([title, f"[Download this notebook]({name})", rest, *parts[1:]]) + "\n"
