"""The process that forms generations, leases slices and shows how a job stands."""
