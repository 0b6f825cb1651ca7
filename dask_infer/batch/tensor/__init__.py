"""The pandas extension array of a column that holds one array a row."""
