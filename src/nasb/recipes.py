"""The recipes that come with nasb: YAML files with the keys of a run's config."""

from pathlib import Path

from nasb.errors import UserError, unknown_name


def recipes_folder() -> Path:
    """Return the folder of the recipes: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent.parent / "recipes"


def list_recipes() -> list[str]:
    """Return the recipes' names."""
    return sorted(path.stem for path in recipes_folder().glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the path of a YAML file, or of the recipe of that name.

    Raises:
        UserError: there is neither such a file nor such a recipe.
    """
    if Path(name).is_file():
        return Path(name)
    if "/" in name or name.endswith((".yaml", ".yml")):
        raise UserError(f"{name}: there is no such file")
    if name not in list_recipes():
        raise UserError(unknown_name("recipe", name, list_recipes()))
    return recipes_folder() / f"{name}.yaml"
