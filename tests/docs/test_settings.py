"""docs/settings.md lists the settings that there are."""

import pathlib

from elasticdl import config

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "settings.md"


def row(setting):
    required = ", ".join(kind for kind in config.KINDS if kind in setting.required)
    default = str(setting.default).lower() if setting.type is bool else str(setting.default)
    return " | ".join(
        (
            f"| `--{setting.name}`",
            f"`{default}`" if default else (f"required: {required}" if required else "none"),
            ", ".join(kind for kind in config.KINDS if kind in setting.kinds),
            f"{setting.help} |",
        )
    )


def test_the_page_has_every_setting_with_its_default_and_its_help():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `--")]
    assert rows == [row(setting) for setting in config.SETTINGS]
