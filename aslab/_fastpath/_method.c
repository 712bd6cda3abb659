/* A method, or a property, with a shortcut in C. In everything else it is the Python function that it was made of:
   `help`, `inspect.signature` and `inspect.iscoroutinefunction` see that. */

#include "_core.h"

typedef struct {
    PyObject_HEAD
    vectorcallfunc call;
    PyObject *python;   /* the function or property */
    PyTypeObject *type; /* whose instances the shortcut knows, */
    PyTypeObject *seen; /* and those of the first subclass that was met: asked for first */
    Core *core;         /* of the type, which keeps it */
    Shortcut shortcut;
    Py_ssize_t nargs;
    int special;
} Method;

#define SPECIAL_ARGS 4 /* of the special methods: self, and what an exit gets */

static int knows(Method *method, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (type == method->seen || type == method->type)
        return 1;
    if (!PyType_IsSubtype(type, method->type))
        return 0;
    if (method->seen == NULL)
        method->seen = (PyTypeObject *)Py_NewRef((PyObject *)type);
    return 1;
}

static PyObject *method_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Method *method = (Method *)self;
    if (names == NULL && PyVectorcall_NARGS(nargsf) == method->nargs && knows(method, args[0])) {
        PyObject *result = method->shortcut(method->core, args);
        if (result != NULL || PyErr_Occurred())
            return result;
    }
    return PyObject_Vectorcall(method->python, args, nargsf, names);
}

/* A special method, bound: what `with` and `async with` ask for each time. Only of those, as a bound method of
   Python is more: `inspect` knows it. */
struct Bound {
    PyObject_HEAD
    vectorcallfunc call;
    Method *method;
    PyObject *object;
};

static PyObject *bound_call(PyObject *self, PyObject *const *args, size_t nargsf, PyObject *names)
{
    Bound *bound = (Bound *)self;
    PyObject *all[SPECIAL_ARGS];
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if (nargs >= SPECIAL_ARGS || names != NULL) {
        PyObject *method = PyMethod_New((PyObject *)bound->method, bound->object);
        PyObject *result = method == NULL ? NULL : PyObject_Vectorcall(method, args, nargsf, names);
        Py_XDECREF(method);
        return result;
    }
    all[0] = bound->object;
    for (Py_ssize_t i = 0; i < nargs; i++)
        all[i + 1] = args[i];
    return method_call((PyObject *)bound->method, all, nargs + 1, NULL);
}

static PyObject *bound_new(Method *method, PyObject *object)
{
    Core *core = method->core;
    Bound *bound;
    if (core->n_bounds) {
        bound = core->bounds[--core->n_bounds];
        _Py_NewReference((PyObject *)bound); /* it has kept its type */
    } else if ((bound = PyObject_New(Bound, core->bound)) == NULL) {
        return NULL;
    }
    bound->call = bound_call;
    bound->method = (Method *)Py_NewRef((PyObject *)method);
    bound->object = Py_NewRef(object);
    return (PyObject *)bound;
}

static void bound_dealloc(PyObject *self)
{
    Bound *bound = (Bound *)self;
    PyTypeObject *type = Py_TYPE(self);
    Core *core = bound->method->core;
    PyObject *object = bound->object, *method = (PyObject *)bound->method;
    int kept = type == core->bound && core->n_bounds < KEPT_BOUNDS;
    if (kept)
        core->bounds[core->n_bounds++] = bound;
    else
        PyObject_Free(self);
    Py_DECREF(object);
    Py_DECREF(method);
    if (!kept)
        Py_DECREF(type);
}

void bound_clear_kept(Core *core)
{
    while (core->n_bounds) {
        PyObject_Free(core->bounds[--core->n_bounds]);
        Py_DECREF(core->bound);
    }
}

static PyObject *method_get(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type))
{
    if (object == NULL || object == Py_None)
        return Py_NewRef(self);
    return ((Method *)self)->special ? bound_new((Method *)self, object) : PyMethod_New(self, object);
}

static PyObject *getter_get(PyObject *self, PyObject *object, PyObject *type)
{
    Method *getter = (Method *)self;
    if (object == NULL)
        return Py_NewRef(self);
    if (knows(getter, object)) {
        PyObject *result = getter->shortcut(getter->core, &object);
        if (result != NULL || PyErr_Occurred())
            return result;
    }
    return Py_TYPE(getter->python)->tp_descr_get(getter->python, object, type);
}

static int getter_set(PyObject *self, PyObject *object, PyObject *value)
{
    PyObject *python = ((Method *)self)->python;
    return Py_TYPE(python)->tp_descr_set(python, object, value);
}

/* Everything but how it is called is read from the Python one. */
static PyObject *method_getattro(PyObject *self, PyObject *name)
{
    if (PyUnicode_CompareWithASCIIString(name, "__class__") == 0 ||
        PyUnicode_CompareWithASCIIString(name, "__call__") == 0 ||
        PyUnicode_CompareWithASCIIString(name, "__get__") == 0)
        return PyObject_GenericGetAttr(self, name);
    return PyObject_GetAttr(((Method *)self)->python, name);
}

/* A property is taken for one: pydoc and sphinx ask for the class. */
static PyObject *getter_getattro(PyObject *self, PyObject *name)
{
    if (PyUnicode_CompareWithASCIIString(name, "__get__") == 0 ||
        PyUnicode_CompareWithASCIIString(name, "__set__") == 0)
        return PyObject_GenericGetAttr(self, name);
    return PyObject_GetAttr(((Method *)self)->python, name);
}

static PyObject *method_repr(PyObject *self)
{
    return PyObject_Repr(((Method *)self)->python);
}

static int method_traverse(PyObject *self, visitproc visit, void *arg)
{
    Method *method = (Method *)self;
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(method->python);
    Py_VISIT(method->type);
    Py_VISIT(method->seen);
    return 0;
}

static int method_clear(PyObject *self)
{
    Py_CLEAR(((Method *)self)->python);
    Py_CLEAR(((Method *)self)->seen);
    return 0; /* the type stays, and with it the state: a call may still come */
}

static void method_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Method *method = (Method *)self;
    PyObject_GC_UnTrack(self);
    Py_XDECREF(method->python);
    Py_XDECREF(method->type);
    Py_XDECREF(method->seen);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

PyObject *method_new(Core *core, PyTypeObject *type, const Entry *entry, PyObject *python)
{
    Method *method = PyObject_GC_New(Method, entry->nargs < 0 ? core->getter : core->method);
    if (method == NULL)
        return NULL;
    method->call = method_call;
    method->python = Py_NewRef(python);
    method->type = (PyTypeObject *)Py_NewRef((PyObject *)type);
    method->seen = NULL;
    method->core = core;
    method->shortcut = entry->shortcut;
    method->nargs = entry->nargs;
    method->special = strncmp(entry->name, "__", 2) == 0;
    PyObject_GC_Track(method);
    return (PyObject *)method;
}

static PyMemberDef method_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Method, call), READONLY, NULL}, {NULL, 0, 0, 0, NULL}};

static PyType_Slot method_slots[] = {{Py_tp_dealloc, method_dealloc},
                                     {Py_tp_traverse, method_traverse},
                                     {Py_tp_clear, method_clear},
                                     {Py_tp_call, PyVectorcall_Call},
                                     {Py_tp_descr_get, method_get},
                                     {Py_tp_getattro, method_getattro},
                                     {Py_tp_repr, method_repr},
                                     {Py_tp_members, method_members},
                                     {0, NULL}};
PyType_Spec method_spec = {"aslab._fastpath._core.Method", sizeof(Method), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL |
                               Py_TPFLAGS_METHOD_DESCRIPTOR | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                               Py_TPFLAGS_IMMUTABLETYPE, /* or the interpreter does not cache the method */
                           method_slots};

static PyObject *bound_getattro(PyObject *self, PyObject *name)
{
    PyObject *method = PyMethod_New((PyObject *)((Bound *)self)->method, ((Bound *)self)->object);
    PyObject *value = method == NULL ? NULL : PyObject_GetAttr(method, name);
    Py_XDECREF(method);
    return value;
}

static PyMemberDef bound_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Bound, call), READONLY, NULL}, {NULL, 0, 0, 0, NULL}};
static PyType_Slot bound_slots[] = {{Py_tp_dealloc, bound_dealloc},
                                    {Py_tp_call, PyVectorcall_Call},
                                    {Py_tp_getattro, bound_getattro},
                                    {Py_tp_members, bound_members},
                                    {0, NULL}};
PyType_Spec bound_spec = {"aslab._fastpath._core.Bound", sizeof(Bound), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                              Py_TPFLAGS_IMMUTABLETYPE,
                          bound_slots};

static PyType_Slot getter_slots[] = {{Py_tp_dealloc, method_dealloc},   {Py_tp_traverse, method_traverse},
                                     {Py_tp_clear, method_clear},       {Py_tp_descr_get, getter_get},
                                     {Py_tp_descr_set, getter_set},     {Py_tp_getattro, getter_getattro},
                                     {Py_tp_repr, method_repr},         {0, NULL}};
PyType_Spec getter_spec = {"aslab._fastpath._core.Getter", sizeof(Method), 0,
                           Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                               Py_TPFLAGS_IMMUTABLETYPE,
                           getter_slots};
