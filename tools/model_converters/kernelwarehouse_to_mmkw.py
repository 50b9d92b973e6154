"""The earlier name of released_to_mmkw.py, which does the same."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from released_to_mmkw import main  # noqa: E402

if __name__ == '__main__':
    main()
