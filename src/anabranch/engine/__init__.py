"""Token tree, pages, scheduler, sampler: from what branches want to passes over the model."""
