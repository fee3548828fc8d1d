/* table.h - rows of text in columns, for people. */
#ifndef VCFT_CLI_TABLE_H
#define VCFT_CLI_TABLE_H

#include <glib.h>

struct table;

/* Columns are left-aligned; those whose letter in align is 'r' right-aligned. align has a letter for each column. */
struct table *table_new(const char *align);
/* Add a row: as many strings as there are columns. They are copied; NULL shows as "-". */
void table_add(struct table *table, ...);
/* Print to stdout and free. */
void table_print(struct table *table);

#endif
