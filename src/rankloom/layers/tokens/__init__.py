"""From a batch's features to tokens [batch, tokens, dim], for every model made of token layers."""
