"""The trainers that ``-tr`` finds: deltas to the base trainer by theme, and the rule that combines them."""
