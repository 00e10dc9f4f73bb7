"""The package's page templates."""

import jinja2


def environment() -> jinja2.Environment:
    """Open the package's templates: all text is escaped, and what is not there is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("potstill", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
