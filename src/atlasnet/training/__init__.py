"""From mapped cases to the weights of one network per atlas."""
