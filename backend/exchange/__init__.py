# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of other programs that hold splats: PLY sequences, OpenUSD, glTF. docs/exchange.md says what keeps what."""
