"""For whoever teaches the course or keeps it alive; no lesson needs it.

- `check`: is everything ready for the class: `python -m utils.course check`.
- `machine_check`: its lines on the machine: Python, kernel, disk, models, pip, proxy.
- `account_check`: and with `--aws` on the account: rights, quotas, role and prices.
- `hosted`: installs the course on Colab or Studio Lab, from a notebook's first cell.
- `address`: the address of the repository, where the README's button leads.
- `copies`: notebooks to teach live with, and notebooks with that first cell.
- `guide`: the table of the guide: what each notebook takes and costs in a class.
- `newest`: which notebooks still run with the newest versions: `make newest`.
"""
