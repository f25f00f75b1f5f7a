"""Recipes: each public function of a module here returns a `Recipe` and is a name to train by."""
