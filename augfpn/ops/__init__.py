"""The ground floor: tensors in, tensors out; batched, of fixed shapes, without a wait for the device."""
