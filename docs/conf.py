"""Settings of Sphinx; `make docs` builds the pages."""

import warnings

warnings.filterwarnings('ignore')

import mmkw  # noqa: E402

project = 'mmkw'
author = copyright = 'The mmkw developers'
version = release = mmkw.__version__

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx_copybutton']
exclude_patterns = ['_build', 'requirements.txt']
myst_heading_anchors = 3
html_theme = 'furo'
html_title = f'mmkw {release}'
html_static_path = ['static']
html_css_files = ['narrow.css']

# What OpenMMLab's classes document is for its own pages.
autodoc_default_options = {'show-inheritance': True}
autodoc_typehints = 'description'
copybutton_prompt_text = '$ '
