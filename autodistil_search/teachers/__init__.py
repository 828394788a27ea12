"""Internal: teachers of all supported families, their loading, and initial weights of students."""
