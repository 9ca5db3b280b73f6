"""The laboratory of digits: data sets, training, networks. Nothing else in kit imports it."""
