package upstream

// newOutlierDetector makes the outlier detection of a target.
func newOutlierDetector(t *Target, o *Outlier) (monitor, error) { return nil, nil }
