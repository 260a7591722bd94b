"""What `dmtl bench` measures: the work counted, the machine's ceilings, contenders, roofline, scaling."""
