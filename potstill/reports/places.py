"""How a page names folders and data: pages are passed on, so they tell no path of a machine."""

import dataclasses
from pathlib import Path
from typing import Any

from potstill.config.config import SECTIONS, Config
from potstill.config.sections import DataConfig


def shown_path(path: Path) -> str:
    """Return a path as it was given if that is relative, or from here, or its last part."""
    if not path.is_absolute():
        return str(path)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def shown_data(config: DataConfig) -> str:
    """Return the data as an option, of a path the last part: "folder:photos"."""
    source, rest = config.source
    return f"{source}:{Path(rest).name}" if Path(rest).is_absolute() else config.data


def shown_config(config: Config[Any]) -> Config[Any]:
    """Return the configuration without the paths of the machine: each by its last part."""
    sections: dict[str, Any] = {
        "data": dataclasses.replace(config.data, data=shown_data(config.data))
    }
    for table in SECTIONS:
        section = sections.get(table, getattr(config, table))
        paths = {
            item.name: Path(value).name
            for item in dataclasses.fields(section)
            if isinstance(value := getattr(section, item.name), str) and Path(value).is_absolute()
        }
        sections[table] = dataclasses.replace(section, **paths)
    return dataclasses.replace(config, **sections)
