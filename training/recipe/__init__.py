"""The options of a run.

In reading order: `option` declares an option, `stored_options` stores and checks a recipe, `recipe` lists the options
of ``fit``, `presets` reads recipes from files, `defaults` chooses what the user does not give.
"""
