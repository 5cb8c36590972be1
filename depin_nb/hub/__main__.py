import sys

from depin_nb.hub.command import main

sys.exit(main())
